"""WebRTC signaling: offers, answers and ICE candidates between clients, through the kernel."""

from realtime.signaling.bridge import WebRTCSignalingBridge

__all__ = ["WebRTCSignalingBridge"]
