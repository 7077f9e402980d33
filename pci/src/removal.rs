//! Surprise removal.
