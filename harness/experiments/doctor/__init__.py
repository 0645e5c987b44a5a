"""Can this machine run a profile? Looked at before anything is downloaded, loaded or trained."""
