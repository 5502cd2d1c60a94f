"""Many runs: sweeps of them, and what compares, tunes, reproduces and reports them."""
