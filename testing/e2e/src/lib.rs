//! End-to-end tests live in `tests/`: each is a script against a [`skep_kit::Lab`](../skep_kit/struct.Lab.html). This library is empty.
