"""The `cmrn` command line; installed as the package `cmrn_cli`."""
