"""What model folders hold beside their weights: read as plain data, carried, changed.

Adapters of folders share this. Nothing that a file names is opened or run, everything is
bounded in size and depth, and only plain files of the folder are read.

- ``reading``: JSON, configs, and whether a file may be carried over
- ``cleaning``: what configs name that no loader should fetch or run
- ``carrying``: which files go along with a merged model
- ``indexes``: which shards hold the weights
- ``tokens``: the vocabulary, from tokenizer files
- ``adapting``: configs and tokenizers that fit what a merge changed
"""
