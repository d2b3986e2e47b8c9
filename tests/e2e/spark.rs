//! What only the real Spark can show. `tests/run` says where it is.
