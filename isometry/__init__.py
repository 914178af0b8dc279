"""Trainability analysis of pruned networks: see it, explain it, repair it."""
from isometry.measurement import Report, compare, measure
from isometry.oracle import orthogonalize, recover
from isometry.pruners import L1, TPP, GReg, Random, prune
from isometry.training import evaluate, train
from isometry import data, networks
