"""Raw tensors to features, one kind of data per file: the arithmetic that is trained and exported.

A file here offers

    Config                                              its settings, `name` among them
    measure(config, inputs, arrays, rows) -> Statistics what must be known of the training rows
    build(config, inputs, statistics)                   called with the raw tensors in order
        -> pipeline.forms.Frontend
    view(config, inputs, row, features, shares, files)  a row and what each of its features contributed,
        -> pipeline.views.View                          as a person reads it
    NOTHING                                             what features of 0 stand for, in words

and, where they need one of their own,

    nothing(config, inputs, features) -> features       what a row is compared with, if it is not 0
    RELATIVE                                            where the exporter cannot keep to
                                                        `pipeline.proof.RELATIVE`

The module says in `features` what it gives. It holds its
constants as buffers, trains with the body and is exported with it, so nobody repeats it wrongly.
"""
