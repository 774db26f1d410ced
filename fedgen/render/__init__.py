"""Pictures of what adapters make of sound: their outputs in place of a prompt, in FLUX or Stable Diffusion."""
