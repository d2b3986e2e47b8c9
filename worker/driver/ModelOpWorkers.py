"""The process of which Spark forks its Python workers on this machine (``spark.python.daemon.module``).

It is Spark's own, after two things that make all of them start faster: pyspark is taken from where Python keeps it
compiled, and what every worker of a record model needs is loaded once, before the first of them is forked.

It must not load anything of the model, which every worker does for itself, nor write to standard output, by which Spark
talks with it.
"""

import os
import sys

# Python puts the current directory first, and that is the model's. Workers find the driver's parts in it all the same.
_HERE = os.getcwd()
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != os.path.realpath(_HERE)]
sys.path.append(_HERE)
sys.dont_write_bytecode = True

import runpy

import ModelOpPySparkDriver as driver

DAEMON = "pyspark.daemon"


def main():
    """Becomes Spark's own daemon; does not return before its end."""
    driver.prefer_unpacked_spark()
    with driver.without_model_folders():
        import pyspark.worker  # noqa: F401 -- for all workers
    import ModelOpSpark  # noqa: F401 -- for all workers

    runpy.run_module(DAEMON, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
