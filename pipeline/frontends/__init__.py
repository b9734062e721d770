"""Raw tensors to features, one kind of data per file: the arithmetic that is trained and exported.

A file here offers

    Config                                              its settings, `name` among them
    measure(config, inputs, arrays, rows) -> Statistics what must be known of the training rows
    build(config, inputs, statistics) -> nn.Module      called with the raw tensors in order

and, where the exporter cannot keep to `pipeline.proof.RELATIVE`, a `RELATIVE` of its own.

The module has `features`, a `pipeline.forms.Features` that says what it gives. It holds its
constants as buffers, trains with the body and is exported with it, so nobody repeats it wrongly.
"""
