"""Models of categories, graphs and points: embeddings, and sums over indices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeepFM(nn.Module):
    """A factorisation machine and a deep part over the same embeddings (Guo et al. 2017)."""

    offsets: Tensor

    def __init__(self, sizes: tuple[int, ...] = (40, 25, 60, 10, 33), width: int = 8) -> None:
        super().__init__()
        starts = torch.tensor((0, *sizes[:-1])).cumsum(0)
        self.register_buffer("offsets", starts)
        self.embedding = nn.Embedding(sum(sizes), width)
        self.linear = nn.Embedding(sum(sizes), 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.xavier_uniform_(self.embedding.weight)
        inside = len(sizes) * width
        self.mlp = nn.Sequential(
            nn.Linear(inside, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(32, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(16, 1),
        )

    def forward(self, fields: Tensor) -> Tensor:
        x = fields + self.offsets.unsqueeze(0)
        embedded = self.embedding(x)
        first = torch.sum(self.linear(x), dim=1) + self.bias
        square_of_sum = torch.sum(embedded, dim=1) ** 2
        sum_of_square = torch.sum(embedded**2, dim=1)
        second = 0.5 * torch.sum(square_of_sum - sum_of_square, dim=1, keepdim=True)
        deep = self.mlp(embedded.view(embedded.shape[0], -1))
        return torch.sigmoid((first + second + deep).squeeze(1))


class Dlrm(nn.Module):
    """Bags of categories and dense numbers, every pair multiplied (Naumov et al. 2019)."""

    def __init__(self, sizes: tuple[int, ...] = (30, 50, 20), width: int = 8) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in sizes)
        self.bottom = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        count = len(sizes) + 1
        self.top = nn.Sequential(
            nn.Linear(width + count * (count - 1) // 2, 24), nn.ReLU(), nn.Linear(24, 1)
        )

    def forward(self, dense: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
        x = self.bottom(dense)
        ly = [bag(indices[i], offsets[i]) for i, bag in enumerate(self.bags)]
        batch, width = x.shape
        joined = torch.cat([x, *ly], dim=1).view((batch, -1, width))
        products = torch.bmm(joined, torch.transpose(joined, 1, 2))
        rows, columns = torch.tril_indices(joined.shape[1], joined.shape[1], offset=-1).unbind(0)
        return torch.sigmoid(self.top(torch.cat([x, products[:, rows, columns]], dim=1)))


class QuantizedRows(nn.Module):
    """Rows of int8 with a scale and a zero each, taken and turned back into floats."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        full = torch.randn(rows, width)
        low, high = full.aminmax(dim=1, keepdim=True)
        scales = (high - low) / 255.0
        zeros = torch.round(-low / scales) - 128
        self.register_buffer(
            "weight", (full / scales + zeros).round().clamp(-128, 127).to(torch.int8)
        )
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight[ids].to(self.scales.dtype)
        return (rows - F.embedding(ids, self.zeros)) * self.scales[ids]


class QuantizedEncoder(nn.Module):
    """A bag of quantized words, an int4-packed layer, and a head in floats that can be trained."""

    packed: Tensor
    packed_scales: Tensor

    def __init__(self, words: int = 100, width: int = 32, classes: int = 6) -> None:
        super().__init__()
        self.words = QuantizedRows(words, width)
        nibbles = torch.randint(0, 16, (width, width), dtype=torch.uint8)
        self.register_buffer("packed", nibbles[:, ::2] | (nibbles[:, 1::2] << 4))
        self.register_buffer("packed_scales", 0.05 + 0.05 * torch.rand(width, 1))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = mask.unsqueeze(-1).to(torch.float32)
        x = (self.words(ids) * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        low, high = self.packed & 0x0F, self.packed >> 4
        nibbles = torch.stack([low, high], dim=-1).flatten(1)
        dense = (nibbles.to(torch.float32) - 8.0) * self.packed_scales
        return self.head(self.norm(F.gelu(F.linear(x, dense), approximate="tanh")))


# Graphs, as pairs of node numbers (source, target) of shape (2, edges).


class GraphConv(nn.Module):
    """Kipf and Welling (2016): messages are summed with both degrees normalized."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inside, outside, bias=False)
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        count = x.size(0)
        loops = torch.arange(count, device=x.device)
        row, col = torch.cat([edges, loops.repeat(2, 1)], dim=1).unbind(0)
        ones = torch.ones(row.size(0), device=x.device)
        degree = torch.zeros(count, device=x.device).scatter_add_(0, col, ones)
        inverse = degree.pow(-0.5)
        inverse = inverse.masked_fill(inverse == float("inf"), 0.0)
        norm = inverse[row] * inverse[col]
        x = self.lin(x)
        out = torch.zeros_like(x).index_add_(0, col, norm.view(-1, 1) * x.index_select(0, row))
        return out + self.bias


class Gcn(nn.Module):
    """Two convolutions, and a mean over the nodes of each graph of the batch."""

    def __init__(self, width: int = 12, graphs: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.graphs = graphs
        self.conv1, self.conv2 = GraphConv(width, 24), GraphConv(24, 24)
        self.fc = nn.Linear(24, classes)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        x = F.relu(self.conv1(x, edges))
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.conv2(x, edges))
        sums = x.new_zeros(self.graphs, x.shape[1]).index_add(0, batch, x)
        sizes = x.new_zeros(self.graphs).index_add(0, batch, torch.ones_like(x[:, 0]))
        return self.fc(sums / sizes.clamp(min=1).unsqueeze(-1))


class GraphAttention(nn.Module):
    """Velickovic et al. (2017): a softmax over the edges that come into each node."""

    def __init__(self, width: int = 12, heads: int = 4, outside: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.heads, self.outside = heads, outside
        self.lin = nn.Linear(width, heads * outside, bias=False)
        self.att_src = nn.Parameter(torch.randn(1, heads, outside) * 0.3)
        self.att_dst = nn.Parameter(torch.randn(1, heads, outside) * 0.3)
        self.fc = nn.Linear(heads * outside, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        count = x.size(0)
        source, target = edges[0], edges[1]
        h = self.lin(x).view(count, self.heads, self.outside)
        score_src, score_dst = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        alpha = F.leaky_relu(score_src[source] + score_dst[target], 0.2)
        where = target.unsqueeze(-1).expand_as(alpha)
        empty = torch.full((count, self.heads), float("-inf"), device=x.device)
        top = empty.scatter_reduce(0, where, alpha.detach(), reduce="amax", include_self=True)
        alpha = (alpha - top.gather(0, where)).exp()
        total = torch.zeros_like(score_dst).scatter_add(0, where, alpha)
        alpha = alpha / (total.gather(0, where) + 1e-16)
        out = torch.zeros_like(h).index_add(0, target, h[source] * alpha.unsqueeze(-1))
        return F.log_softmax(self.fc(F.elu(out.flatten(1))), dim=-1)


# Clouds of points.


class EdgeConvNet(nn.Module):
    """The nearest neighbors of each point, found and gathered (Wang et al. 2018)."""

    def __init__(self, k: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.k = k
        self.conv1 = nn.Sequential(
            nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(32, 24, 1, bias=False), nn.BatchNorm2d(24), nn.LeakyReLU(0.2)
        )
        self.fc = nn.Linear(2 * 24, classes)

    def neighbors(self, x: Tensor) -> Tensor:
        batch, channels, count = x.size()
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        square = torch.sum(x**2, dim=1, keepdim=True)
        index = (-square - inner - square.transpose(2, 1)).topk(k=self.k, dim=-1)[1]
        index = (index + torch.arange(batch, device=x.device).view(-1, 1, 1) * count).view(-1)
        x = x.transpose(2, 1).contiguous()
        near = x.view(batch * count, -1)[index, :].view(batch, count, self.k, channels)
        x = x.view(batch, count, 1, channels).repeat(1, 1, self.k, 1)
        return torch.cat((near - x, x), dim=3).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.neighbors(x)).max(dim=-1, keepdim=False)[0]
        x = self.conv2(self.neighbors(x)).max(dim=-1, keepdim=False)[0]
        x = torch.cat([F.adaptive_max_pool1d(x, 1), F.adaptive_avg_pool1d(x, 1)], dim=1)
        return self.fc(x.squeeze(-1))
