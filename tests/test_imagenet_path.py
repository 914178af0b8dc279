"""The path of the papers' ImageNet experiments, ResNet-50 at 224x224, from a folder of images to a measurement."""

import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import isometry
from tests.data.test_images import write

RATIOS = {"layer[123].*.conv[12]": 0.6, "layer4.*.conv[12]": 0.21}  # the published ones, 2.31 times fewer FLOPs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> isometry.data.Folder:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 12), ("val", 4)):
        for c, name in enumerate(("ant", "bee", "cat", "dog")):
            for i in range(count):
                write(root / part / name / f"{i}.jpg", 100 * c + i, (180 + 17 * i, 400 - 23 * i))
    return isometry.data.folder(root, batch_size=8)


@pytest.mark.slow
def test_resnet_50_is_trained_pruned_evaluated_and_measured_on_a_folder_of_images(images: isometry.data.Folder) -> None:
    net = isometry.networks.build("resnet-50", len(images.classes), seed=0, input_shape=images.input_shape)
    (epoch,) = isometry.train(net, images, lr=0.01, epochs=1, epoch_steps=2)
    assert math.isfinite(epoch.loss)
    assert epoch.steps == 2
    parameters_to_vector(net.parameters())
    quick = isometry.TPP(delta=1.0, interval=1, stabilize=1, zero_out=None)
    x = next(iter(images.test)).inputs[:2]
    for pruner in (isometry.L1(), quick):
        pruned = isometry.prune(net, pruner, RATIOS, data=images, progress=False)
        assert pruned.before.flops / pruned.after.flops == pytest.approx(2.31, abs=0.06)
        assert pruned.model.layer2[1].conv1.out_channels == 51
        result = isometry.evaluate(pruned.model, images)
        assert result.samples == 16
        assert math.isfinite(result.loss)
        recalibrated = isometry.recalibrate(pruned.model, images, samples=16)
        report = isometry.measure(recalibrated, x, method="krylov")
        assert report.mean_jsv > 0
        assert report.interval[0] <= report.mean_jsv <= report.interval[1]
        exact = isometry.measure(recalibrated, x, method="exact")  # four outputs: all singular values are affordable
        assert report.mean_jsv == pytest.approx(exact.mean_jsv, rel=0.05)
    assert torch.equal(net(x), net(x))
