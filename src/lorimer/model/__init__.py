"""The frozen base, the chat renderer, the adapter layers and the PEFT files they are kept in."""

import os

# torch keeps what it has prepared for each shape of product, up to a thousand of them a thread: with streams of ever other lengths that
# was 27 MB a training step (dev/LOG.md). Read when the first product runs, so set before torch is imported here.
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
