#!/usr/bin/env bash
# The scores of the README: bundled pictures, every pair at two places, a training of about an hour on two cores with
# AMX. Works in the current directory; `make scores` calls it.
set -euo pipefail

. "$(dirname "$0")/step.sh"

step dsgen composite --positions 2 --no-pictures
step dsgen depth
step dsgen pack --shards 6
step dsgen train --batch-size 16 --schedule cosine --epochs 19 --epoch-samples 4000 --validation-samples 500
step dsgen evaluate --split test
