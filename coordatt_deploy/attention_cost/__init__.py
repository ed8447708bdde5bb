"""What each attention block costs on each backbone, in the files of the official exporters and in this package's."""
