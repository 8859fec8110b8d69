"""Export a store for other tools: WebDataset, Hugging Face `datasets`, and what detects and segments instances.

    webdataset    train-00000-of-00003.tar       000000123.image.png, .mask.png, .depth.npy.gz, .json, key = row
    parquet       data/train-00000-of-00003.parquet              one row each, features in the schema
    coco          train/data/000000123.png, train/depth/000000123.png, train/labels.json
    yolo          images/train/000000123.png, labels/train/000000123.txt, data.yaml

Images are PNG, lossless, or JPEG of quality 95; masks 8-bit PNG, 0 or 255; depth 16-bit PNG, but gzipped npy of uint16
in tar files, millimetres, 0 = none. A `README.md` beside the files says how to read them; in a tar file it would be
taken for a sample. In `coco` masks are run lengths, in `yolo` polygons.

Rows are written split by split, in the order of the plan. A file holds up to `rows_per_file` of them. Its bytes depend
on the store, the rows and the settings alone. It is streamed to disk and takes its name once it is complete, so a file
that exists is not written again. `export.json` is written first, and says what the folder is exported from; it is
rewritten last, as `complete`, with the rows and bytes of every file.

Where every picture is a file, rows are written in blocks of `rows_per_file`, each of which has a record in `exporting`
until the export is complete, and an entry of its rows and bytes in `export.json`.
"""
