"""The foundation model trained by several workers: tables sharded over them, dense weights replicated or sharded."""
