"""Losses of other libraries, class for class: change the import and nothing else.

One module a library, which imports it: `open_clip`, `lightly`, `pytorch_metric_learning`, `sentence_transformers`,
`info_nce`, `transformers`, `torch_mist`. Class names, constructors, forward signatures, attributes and what comes back
are the library's own, so that configurations, checkpoints, wrappers and trainers keep working. Losses come in float32
for half-precision features. What cannot be exact raises NotImplementedError that names the option.

Several processes that share a batch, as the library's own flags say, have the value and the gradients of one with all
of its rows. Attribute `original_gradients = True`, of a loss or of its class, gives each process the library's own.
"""
