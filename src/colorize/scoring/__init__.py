"""One protocol and one table: metrics, evaluation, oracles, figures."""
