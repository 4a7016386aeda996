"""Weight-only merging methods: averages, task vectors, signs, spheres, spectra."""
