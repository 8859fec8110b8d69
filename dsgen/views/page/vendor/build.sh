#!/bin/sh
# Make zarrita.js, one file with zarrita and the WebAssembly of all its codecs (blosc, lz4, zstd): sh build.sh
# Needs node and npm. Versions and hashes are those of package-lock.json, so the same bytes come out; to take newer
# ones, edit package.json, remove package-lock.json, and see whether LICENCES.txt still names all that is in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/package-lock.json" "$here/entry.js" "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund
node_modules/.bin/esbuild entry.js --bundle --minify --format=esm --target=es2022 --charset=utf8 \
  --legal-comments=none --banner:js='// zarrita and its codecs, bundled by build.sh; licences: LICENCES.txt' \
  --outfile="$here/zarrita.js"
