"""Where the ClientApps run: each module is one Flower Grid, or a part of several."""
