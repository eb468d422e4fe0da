"""Problems, runs and files that several tests share."""
