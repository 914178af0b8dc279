"""The networks of the papers by name; input shape, size and modules of any network."""

from isometry.networks.bounded import BoundedBatchNorm1d, BoundedBatchNorm2d, convert, fold, importances
from isometry.networks.candidates import InputSpec, describe_inputs
from isometry.networks.catalogue import build, names
from isometry.networks.footprint import Size, size
from isometry.networks.pretrained import PRETRAINED
from isometry.networks.shapes import example_inputs, find_inputs, input_shape, placed, required_inputs

__all__ = [
    "PRETRAINED",
    "BoundedBatchNorm1d",
    "BoundedBatchNorm2d",
    "InputSpec",
    "Size",
    "build",
    "convert",
    "describe_inputs",
    "example_inputs",
    "find_inputs",
    "fold",
    "importances",
    "input_shape",
    "names",
    "placed",
    "required_inputs",
    "size",
]
