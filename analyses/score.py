"""Which of these checkpoints of one network is still trainable?

The one whose mean JSV is near that of the dense network; a hundredth of it, and gradients hardly pass. This is the command
`isometry compare` as a script, to copy and change: name the weights, the network that they belong to, and inputs.

Run `python analyses/score.py dense=dense.safetensors l1=l1.safetensors --network my.module:build --data digits --plot`; the first is
the one that the others are compared with. Seconds on one core for a CIFAR ResNet.
"""

from __future__ import annotations

import sys

from isometry.command import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
