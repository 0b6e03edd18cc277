#!/usr/bin/env bash
# Compress a CIFAR-10 classifier to the BitOps of 3 bits everywhere, fine-tune it, and compare both with the float model.
#
#   examples/finetune_cifar10.sh MODEL.onnx CALIBRATION TEST
#
# CALIBRATION and TEST are class folders (airplane/0001.png, automobile/…), or any other images for CALIBRATION: training
# needs no labels. Files go into the working folder. Change --preprocess to what the model was trained with. Needs the
# extra finetune. About half an hour on two processors, and a few minutes with fewer --epochs.
set -euo pipefail
model=$1 calibration=$2 test=$3

infoq-onnx analyze "$model" --calib "$calibration" --preprocess imagenet -o cifar10.infoq
infoq-onnx allocate cifar10.infoq --bitops uniform:3/3 -o mixed33.onnx

# a killed run goes on where it was when the same command runs again
infoq-onnx finetune mixed33.json --train "$calibration" --mode lsq --epochs 20

for small in mixed33 mixed33.finetuned; do
    infoq-onnx evaluate "$small.onnx" --data "$test" --against "$model"
done
