#!/usr/bin/env bash
# Compress a CIFAR-10 classifier to several budgets, and compare each result with the float model.
#
#   examples/cifar10.sh MODEL.onnx CALIBRATION TEST
#
# CALIBRATION and TEST are class folders (airplane/0001.png, automobile/…). Files go into the working folder. Change
# --preprocess to what the model was trained with, or give --mean and --std (see docs/cli.md).
set -euo pipefail
model=$1 calibration=$2 test=$3

infoq-onnx inspect "$model"

# once: the slow step, which goes on where it was when it is started again
infoq-onnx analyze "$model" --calib "$calibration" --preprocess cifar10 -o cifar10.infoq

# then any number of budgets, each in a minute or less
infoq-onnx allocate cifar10.infoq --uniform 4/4 -o uniform44.onnx
infoq-onnx allocate cifar10.infoq --bitops uniform:4/4 -o mixed44.onnx
infoq-onnx allocate cifar10.infoq --compression 8 --weight-only --pin first=8 --pin last=8 -o weights8x.onnx

# the emitted models carry their preprocessing
for small in uniform44 mixed44 weights8x; do
    infoq-onnx evaluate "$small.onnx" --data "$test" --against "$model"
done
