"""espeak-ng's voice, from the library in the package espeakng-loader, called as its `speak_lib.h` declares.

The library has one voice and one speed for the whole process: speak from one thread at a time. A new process
that speaks the same words in the same order makes the same sounds.
"""

import ctypes
from functools import cache

import espeakng_loader

from shared.learning import sound

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: synthesis returns when the callback has had every sample
RETURN_ERRORS = 0x8000  # espeakINITIALIZE_DONT_EXIT
WORDS_PER_MINUTE = 1  # espeakRATE
FROM_A_CHARACTER = 1  # POS_CHARACTER
UTF8, PAUSE_AT_END = 0x1, 0x1000  # espeakCHARS_UTF8, espeakENDPAUSE: the program pauses at the end too
GO_ON = 0
SEED = 0
Collector = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@cache
def library() -> tuple[ctypes.CDLL, int]:
    """The library with the package's own data, and its samples a second."""
    espeak, data = ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path()
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), RETURN_ERRORS)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng cannot use its data in {data}")
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # for the noise in its sounds; else the time of day
    return espeak, rate


def speak(word: str, voice: str, words_per_minute: int) -> bytes:
    """A mono 16-bit WAV of the word in a voice such as «en-us+m1»."""
    espeak, rate = library()
    samples, text = bytearray(), word.encode()

    @Collector
    def collect(values: int | None, count: int, events: int | None) -> int:
        samples.extend(ctypes.string_at(values, 2 * count) if values else b"")
        return GO_ON

    espeak.espeak_SetSynthCallback(collect)
    size, flags = ctypes.c_size_t(len(text) + 1), UTF8 | PAUSE_AT_END
    if (
        espeak.espeak_SetVoiceByName(voice.encode())
        or espeak.espeak_SetParameter(WORDS_PER_MINUTE, words_per_minute, 0)
        or espeak.espeak_Synth(text, size, 0, FROM_A_CHARACTER, 0, flags, None, None)
    ):
        raise ValueError(f"espeak-ng cannot speak «{word}» as {voice}")
    return sound.wav(bytes(samples), rate)
