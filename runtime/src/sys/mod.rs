//! The system calls for which neither std nor rustix has a safe face; the only unsafe code of coracle.
