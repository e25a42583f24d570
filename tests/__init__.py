"""The tests: folders as in the package, so what holds ``influence_cli/store`` to its word is in ``tests/store``.

What they share: ``cases`` (small data, models trained for a moment, and the command line run in this process),
``oracle`` (float64 references that share no arithmetic with the package, and problems to meet them on), ``conftest``
(fixtures), ``package_files`` (the package as parsed code) and ``generate_docs`` (the parts of documents that the code
writes).  ``test_architecture``, ``test_docs`` and ``test_doc_commands`` are about the whole checkout.  ``peers`` holds
scores against other libraries; ``reproduction`` has the paper's experiments, of which the quick ones are tests;
``benchmarks`` are no tests.

    bash tests/run.sh                            all of them, in a process a core
    bash tests/run.sh tests/store -k kill        some of them; arguments go to pytest
"""
