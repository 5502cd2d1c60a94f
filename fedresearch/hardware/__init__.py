"""Where the ClientApps run: one Flower Grid a module."""
