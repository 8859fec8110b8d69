#!/usr/bin/env bash
# The whole job on a small part of the bundled pictures, in the current directory. `make demo` calls it.
set -euo pipefail

. "$(dirname "$0")/step.sh"

step dsgen composite --max-backgrounds 40 --max-foregrounds 40 --positions 1 --validation-share 0.2
step dsgen depth
step dsgen pack --shards 6
step dsgen train --epochs 8 --epoch-samples 500
step dsgen composite floor --place floor --people 1-3 --shadow 0.6 --max-backgrounds 40 --max-foregrounds 40 --positions 1
step dsgen pack floor --recipe --out floor-shards
step dsgen depth corpus --composed
step dsgen info corpus
step dsgen info floor
step dsgen info shards
step dsgen preview shards --out preview.png
step dsgen preview floor-shards --out floor-preview.png
echo
echo "look at $PWD/floor-preview.png, $PWD/preview.png, $PWD/run/predictions/ and $PWD/run/curves.png"
