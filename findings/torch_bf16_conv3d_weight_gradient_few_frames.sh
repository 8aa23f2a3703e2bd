#!/usr/bin/env bash
# torch 2.13 on a CPU with bfloat16 instructions: the weight gradient of a Conv3d that is padded in time is garbage, near
# 1e38 or no number, where a video has so few frames that one tap of the kernel meets every frame in one place only: two
# frames for the (3, 1, 1) of diffusers' temporal layers.  The output is right, and so is everything in float32, in
# Conv2d, with more frames, or where the padding is done before the convolution (as Wan's VAE does).  So a video UNet that
# learns on two latent frames under autocast is lost with its first step.  No fault where the CPU has no such instructions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.2.6" "torch==2.13.0"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__, "bfloat16 instructions:", "bf16" in open("/proc/cpuinfo").read())


def error(frames, padded_before=False):
    """Largest error of the weight gradient, and of the output, over the largest of float32's."""
    padding = (0, 0, 0) if padded_before else (1, 0, 0)
    exact = nn.Conv3d(32, 32, (3, 1, 1), padding=padding)
    rounded = nn.Conv3d(32, 32, (3, 1, 1), padding=padding)
    rounded.load_state_dict(exact.state_dict())
    rounded.bfloat16()
    video = torch.randn(4, 32, frames, 6, 6)
    if padded_before:
        video = nn.functional.pad(video, (0, 0, 0, 0, 1, 1))
    wanted, found = exact(video), rounded(video.bfloat16())
    back = torch.randn_like(wanted)
    wanted.backward(back)
    found.backward(back.bfloat16())
    one, other = exact.weight.grad, rounded.weight.grad.float()
    off = ((other - one).abs() / one.abs().max()).nan_to_num(float("inf")).max()
    return float(off), float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


found = {frames: error(frames) for frames in (1, 2, 3, 4)}
for frames, (gradient, output) in found.items():
    print(f"{frames} frames: relative error of the weight gradient {gradient:.3g}, of the output {output:.3g}")
before = error(2, padded_before=True)
print(f"2 frames, padded before: {before[0]:.3g}, {before[1]:.3g}")
right = [found[frames][0] for frames in (1, 3, 4)] + [before[0]] + [output for _, output in found.values()]
sys.exit(0 if found[2][0] > 1.0 and max(right) < 0.05 else 1)
PYTHON
