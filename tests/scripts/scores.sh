#!/usr/bin/env bash
# The scores of the README: 473 bundled rooms and 100 people, a training with augmentation, a polish without, both
# scored. Under two hours on two cores with AMX. Works in the current directory; `make scores` calls it.
set -euo pipefail

. "$(dirname "$0")/step.sh"

assets=$(dirname "$0")/../../assets
mkdir -p rooms
cp "$assets"/backgrounds/*.jpg "$assets"/rooms/*.jpg rooms/

step dsgen composite --backgrounds rooms --positions 1 --no-flip --size 192 --label-size 384 --fg-height 94 --no-pictures
step dsgen depth
step dsgen pack --shards 6
step dsgen train --batch-size 16 --schedule cosine --epochs 28 --epoch-samples 4000
step dsgen train --run polished --init run --augment 0 --sizes 192 --batch-size 16 --schedule cosine \
    --learning-rate 0.0015 --epochs 8 --epoch-samples 4000
for split in validation test; do
    step dsgen evaluate run --split "$split"
    step dsgen evaluate polished --split "$split"
done
