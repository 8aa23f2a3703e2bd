"""Makes prompt_case.npz with diffusers' plain network:  python make_prompt_case.py

In cases.npz one prompt row stands against 511 of padding, which hides what is wrong with the text's weights; here it is
twenty rows of large numbers.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel

HERE = Path(__file__).parent
TIMESTEP, ROWS = 299, 20


@torch.no_grad()
def main() -> None:
    model = WanTransformer3DModel.from_pretrained(HERE / "transformer").float().eval()
    with np.load(HERE / "cases.npz") as reference:
        sigma = torch.from_numpy(reference["case0_sigma"])  # of noise index 300 in Wan's shifted schedule
    generator = torch.Generator().manual_seed(20)
    shape = (1, model.config.in_channels, 1, 8, 12)
    latents, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    prompt = 4.0 * torch.randn(ROWS, model.config.text_dim, generator=generator)
    noisy = ((1 - sigma) * latents + sigma * noise).float()
    padded = torch.zeros(1, 512, model.config.text_dim)
    padded[0, :ROWS] = prompt
    found: dict[str, torch.Tensor] = {}
    for tap in range(model.config.num_layers):
        model.blocks[tap].register_forward_hook(
            lambda module, inputs, output, tap=tap: found.update({f"features_block{tap}": output})
        )
    velocity = model(noisy, torch.tensor([TIMESTEP]), padded).sample
    arrays = {"latents": latents, "noise": noise, "noisy": noisy, "prompt_embedding": prompt, "velocity": velocity}
    numbers = {f"prompt20_{name}": value.numpy() for name, value in (arrays | found).items()}
    numbers |= {"prompt20_timestep": np.asarray(TIMESTEP), "prompt20_sigma": sigma.numpy()}
    np.savez_compressed(HERE / "prompt_case.npz", **numbers)


if __name__ == "__main__":
    main()
