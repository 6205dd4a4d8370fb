class GraphModule(torch.nn.Module):
    def forward(self, primals_1: "f32[2, 3][3, 1]cpu", primals_2: "f32[3][1]cpu"):
        # File: tests/compat/write_files.py:64 in loss, code: return ((x * weight).relu().t()[1:] * 2).sum()
        mul: "f32[2, 3][3, 1]cpu" = torch.ops.aten.mul.Tensor(primals_1, primals_2);  primals_2 = None
        relu: "f32[2, 3][3, 1]cpu" = torch.ops.aten.relu.default(mul);  mul = None
        detach: "f32[2, 3][3, 1]cpu" = torch.ops.aten.detach.default(relu)
        t: "f32[3, 2][1, 3]cpu" = torch.ops.aten.t.default(relu);  relu = None
        slice_1: "f32[2, 2][1, 3]cpu" = torch.ops.aten.slice.Tensor(t, 0, 1, 9223372036854775807);  t = None
        mul_1: "f32[2, 2][1, 2]cpu" = torch.ops.aten.mul.Tensor(slice_1, 2);  slice_1 = None
        sum_1: "f32[][]cpu" = torch.ops.aten.sum.default(mul_1);  mul_1 = None
        detach_1: "f32[2, 3][3, 1]cpu" = torch.ops.aten.detach.default(detach);  detach = None
        return (sum_1, primals_1, detach_1)

