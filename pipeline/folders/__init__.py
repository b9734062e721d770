"""Files with labels: in a folder for each class, by their names, or by a table; on disk or in a tar.

    cats/1.jpg  dogs/2.png  ...                     dealt into train, validation and test
    train/cats/1.jpg  test/cats/7.jpg  ...          a given split; what is missing is dealt

A split's folder may be called train or training; val, valid, validation or dev; test or testing. A
class holds every file below its folder. What counts is told by the suffix; anything else, and what
begins with a dot or an operating system left behind, is ignored and counted.
"""
