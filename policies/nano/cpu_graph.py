"""A network as one graph of OpenVINO's: on a CPU its kernels are chosen, fused and laid out before it is asked."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.types import VegaError

# Snippets, kernels that OpenVINO writes itself, end the process for some of our networks (2024.6 to 2026.4.1).
OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}


class CpuGraph:
    """What `network` answers, up to rounding, for inputs of the sizes of `examples`, with the weights it has now.

    Runs on as many threads as torch has when it is made, which takes seconds.
    """

    def __init__(self, network: nn.Module, examples: Sequence[Tensor]) -> None:
        """network: tensors to a tuple of tensors.  Raises VegaError where OpenVINO is not installed."""
        # It would report each conversion to its makers; without it OpenVINO takes a stand-in that does nothing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError:
            raise VegaError(
                "Small policies are compiled by OpenVINO, which is not installed: pip install openvino, or leave "
                "compiled as configured."
            ) from None
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch to itself
            network(*examples)  # what is made once for a size is a constant then
            exported = torch.export.export(network.eval(), tuple(examples))
            model = openvino.convert_model(exported)
        model.reshape({number: list(example.shape) for number, example in enumerate(examples)})
        options = {**OPTIONS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        answers = self._request.infer([tensor.numpy() for tensor in inputs])  # copies, of the next call's no memory
        return [torch.from_numpy(answer) for answer in answers.values()]
