"""Published numbers that analyses show beside their own."""

__all__ = ["CIFAR_ACCURACY", "JSV_BY_RATIO", "RATIOS", "VGG_ACCURACY"]

RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_CURVES = {
    "mlp-7-linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "mlp-7-relu": (1.8276, 1.6667, 1.2592, 0.6276, 0.1340, 0.0056),
    "lenet-5-linear": (3.7446, 3.3722, 2.5516, 1.5169, 0.4225, 0.1127),
    "lenet-5-relu": (3.0052, 2.8623, 2.5952, 1.8428, 0.6950, 0.1850),
}
JSV_BY_RATIO = {network: dict(zip(RATIOS, curve, strict=True)) for network, curve in _CURVES.items()}
"""{network: {ratio: mean JSV of the network just pruned on MNIST}}: means of two runs (one for MLP-7-Linear) in the plot data of the
reference repository of Wang et al. 2021 (arXiv 2105.05916), which names neither criterion nor moment; presumably L1."""

_WANG, _SUTEU = "Wang & Fu 2023", "Suteu & Guo 2022"
CIFAR_ACCURACY = {
    "L1": (_WANG, {0.5: "93.51 ± 0.07", 0.7: "92.26 ± 0.17", 0.9: "86.75 ± 0.31"}),
    "L1 + OrthP": (_WANG, {0.5: "93.36 ± 0.19", 0.7: "91.96 ± 0.06", 0.9: "86.01 ± 0.34"}),
    "TPP": (_WANG, {0.5: "93.46 ± 0.06", 0.7: "92.35 ± 0.12", 0.9: "89.63 ± 0.10"}),
    "Slimming": (_SUTEU, {0.5: "93.37", 0.9: "89.91"}),
    "RNI": (_SUTEU, {0.5: "93.26", 0.9: "90.01"}),
}
"""{method: (paper, {ratio: final accuracy of ResNet-56 on CIFAR-10, % ± standard deviation where known})}: fine-tuned for 120 epochs
from lr 0.01 (Wang & Fu, ICLR 2023, Tab. 1; best test epoch of 3 runs), or trained and fine-tuned for 160 epochs each (Suteu & Guo 2022,
notebook of the reference code; single runs, best test epoch)."""

VGG_ACCURACY = {
    "RNI": (_SUTEU, {0.5: "93.67", 0.9: "90.88"}),
    "Slimming": (_SUTEU, {0.5: "93.67", 0.9: "89.95"}),
    "UCS": (_SUTEU, {0.5: "92.93", 0.9: "84.05"}),
}
"""The same for VGG-16 on CIFAR-10; before removal 93.63, 93.87 and 93.58."""
