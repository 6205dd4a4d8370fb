class GraphModule(torch.nn.Module):
    def forward(self, primals_1: "f32[2, 3][3, 1]cpu", detach_1: "f32[2, 3][3, 1]cpu", tangents_1: "f32[][]cpu"):
        # File: tests/compat/write_files.py:64 in loss, code: return ((x * weight).relu().t()[1:] * 2).sum()
        expand: "f32[2, 2][0, 0]cpu" = torch.ops.aten.expand.default(tangents_1, [2, 2]);  tangents_1 = None
        mul_2: "f32[2, 2][2, 1]cpu" = torch.ops.aten.mul.Tensor(expand, 2);  expand = None
        slice_backward: "f32[3, 2][2, 1]cpu" = torch.ops.aten.slice_backward.default(mul_2, [3, 2], 0, 1, 9223372036854775807, 1);  mul_2 = None
        t_1: "f32[2, 3][1, 2]cpu" = torch.ops.aten.t.default(slice_backward);  slice_backward = None
        threshold_backward: "f32[2, 3][3, 1]cpu" = torch.ops.aten.threshold_backward.default(t_1, detach_1, 0);  t_1 = detach_1 = None
        mul_3: "f32[2, 3][3, 1]cpu" = torch.ops.aten.mul.Tensor(threshold_backward, primals_1);  threshold_backward = primals_1 = None
        sum_2: "f32[1, 3][3, 1]cpu" = torch.ops.aten.sum.dim_IntList(mul_3, [0], True);  mul_3 = None
        view: "f32[3][1]cpu" = torch.ops.aten.view.default(sum_2, [3]);  sum_2 = None
        return (None, view)

