"""Time of a MAE step (forward, backward, optimiser) on ViT-S/16 at 224 pixels, against the arithmetic of the authors' code.

    python benchmarks/mae_step.py [--batch 16] [--rounds 41] [--threads N] [--quick]

The reference is written here from the paper (He et al. 2022, arXiv 2111.06377) and does what facebookresearch/mae does: softmax of
q k^T in full, tokens shuffled back with a gather, every patch painted and the loss of visible ones multiplied by zero, AdamW as torch
makes it by default. Both have the same weights (asserted: the first losses agree to 1e-5, the ones after the first step to 1e-4) and
see the same masks. Rounds alternate between the two in one process, so that a busy moment meets both; the ratio of medians counts.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from common import machine, parse, write_rows
from torch import Tensor, nn

from visiontune import MAE
from visiontune.masking import Masking


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.norm1, self.attn, self.norm2, self.mlp = norm(dim), Attention(dim, heads), norm(dim), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Reference(nn.Module):
    """The paper's appendix A.1 as the authors wrote it down, with their names."""

    def __init__(self, dim: int, depth: int, heads: int, decoder: tuple[int, int, int], patch: int, N: int) -> None:
        super().__init__()
        E, decoder_depth, decoder_heads = decoder
        self.patch, norm = patch, partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = Patches(dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, N + 1, dim), requires_grad=False)
        self.blocks, self.norm = nn.ModuleList(Block(dim, heads) for _ in range(depth)), norm(dim)
        self.decoder_embed, self.mask_token = nn.Linear(dim, E), nn.Parameter(torch.zeros(1, 1, E))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, N + 1, E), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(E, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm, self.decoder_pred = norm(E), nn.Linear(E, patch**2 * 3)

    def forward(self, images: Tensor, noise: Tensor, ratio: float) -> Tensor:
        # encoder
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        B, N, D = x.shape
        shuffle = noise.argsort(dim=1)
        restore, keep = shuffle.argsort(dim=1), int(N * (1 - ratio))
        x = x.gather(1, shuffle[:, :keep, None].repeat(1, 1, D))
        mask = torch.ones(B, N)
        mask[:, :keep] = 0
        mask = mask.gather(1, restore)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        # decoder
        x = self.decoder_embed(x)
        tokens = torch.cat([x[:, 1:], self.mask_token.repeat(B, N - keep, 1)], dim=1)
        tokens = tokens.gather(1, restore[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        painted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        # loss
        p, (h, w) = self.patch, (images.shape[2] // self.patch, images.shape[3] // self.patch)
        target = torch.einsum("nchpwq->nhwpqc", images.reshape(B, 3, h, p, w, p)).reshape(B, N, p**2 * 3)
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        return (((painted - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


def give_weights(reference: Reference, ours: MAE) -> None:
    state = {k.removeprefix("backbone."): v for k, v in ours.state_dict().items() if k not in ("mean", "std")}
    E = ours.decoder_pos.shape[-1]
    state["decoder_pos_embed"] = torch.cat([torch.zeros(1, 1, E), ours.decoder_pos], dim=1)
    reference.load_state_dict(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two rounds of two pictures, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.batch, args.rounds = 2, 2
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours = MAE("vit_small_patch16_224", image_size=224)
    reference = Reference(384, 12, 6, (512, 8, 16), 16, 196)
    give_weights(reference, ours)
    images = torch.randn(args.batch, 3, 224, 224)

    own = [p for p in ours.parameters() if p.requires_grad]
    fast = torch.optim.AdamW(own, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    plain = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step(which: str, noise: Tensor) -> tuple[float, float]:
        began = time.perf_counter()
        if which == "ours":
            order = noise.argsort(dim=1)
            ours.mask = lambda *_: Masking(visible=order[:, :49], hidden=order[:, 49:])  # type: ignore[method-assign]
            loss: Any = ours.training_step(images, 0)
        else:
            loss = reference(images, noise, 0.75)
        optimizer = fast if which == "ours" else plain
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began, loss.item()

    times: dict[str, list[float]] = {"ours": [], "reference": []}
    differences = []
    for i in range(args.rounds + 1):  # the first is a warm-up
        noise = torch.rand(args.batch, 196)
        order = ("ours", "reference") if i % 2 else ("reference", "ours")
        losses = {}
        for which in order:
            seconds, losses[which] = step(which, noise)
            if i:
                times[which].append(seconds)
        differences.append(abs(losses["ours"] - losses["reference"]))
        assert differences[-1] < (1e-5 if i == 0 else 1e-4), differences
    ratios = [a / b for a, b in zip(times["ours"], times["reference"], strict=True)]
    row: dict[str, Any] = {"batch": args.batch, "rounds": args.rounds, "threads": args.threads}
    for which, seconds_of in times.items():
        row[f"{which}_seconds"] = round(statistics.median(seconds_of), 3)
    row |= {"ratio": round(statistics.median(times["ours"]) / statistics.median(times["reference"]), 3)}
    row |= {"ratio_low": round(min(ratios), 3), "ratio_high": round(max(ratios), 3)}
    row |= {"loss_difference_first": f"{differences[0]:.1e}", "loss_difference_last": f"{differences[-1]:.1e}", **machine()}
    write_rows(args.csv, [row])


if __name__ == "__main__":
    main()
