"""Problems, runs, data layouts and files that several tests share."""
