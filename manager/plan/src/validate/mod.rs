//! What is wrong with a spec, in the order of the original's checks (wire-behaviour 18.2), naming the field and the cure.
