"""A user's script, for `mypy --strict` and for an installed wheel; see versions.sh."""

import isometry

data = isometry.data.load("digits")
model = isometry.networks.build("mlp-7-relu", input_shape=data.input_shape, seed=0)
pruned: isometry.Pruned = isometry.prune(model, isometry.L1(), ratio=0.5)
report: isometry.Report = isometry.measure(pruned.model, data.test, layers=True)
mean: float = report.mean_jsv
print(mean, isometry.compare({"dense": model, "L1": pruned.model}, data.test)["mean_jsv"].tolist())
