"""Who speaks: the voices that answer, the users that are heard in training and those that are not."""

from dataclasses import dataclass

import numpy as np

from mini.espeak import Speaker

VOICES = {
    "ash": Speaker("en-us", pitch=48, range=50),
    "birch": Speaker("en-us+f3", pitch=60, range=50),
    "cedar": Speaker("en-us+edward", pitch=60, range=45),
    "willow": Speaker("gmw/en+f2", pitch=72, range=60),
}
"""The voices of replies. All fill the same steps with the same word, so they differ in all but speed."""


@dataclass(frozen=True)
class User:
    """One who asks: speed and pitch are the middle of what this speaker does."""

    voice: str
    speed: int
    pitch: int

    def mood(self, chance: np.random.Generator) -> Speaker:
        """This speaker at another time."""
        return Speaker(
            self.voice,
            speed=round(self.speed * chance.uniform(0.88, 1.14)),
            pitch=int(np.clip(self.pitch + chance.integers(-9, 10), 0, 99)),
            range=int(chance.integers(30, 70)),
        )


USERS = (
    User("en-us", 160, 45),
    User("en-us+m1", 150, 35),
    User("en-us+m3", 175, 55),
    User("en-us+f1", 160, 50),
    User("en-us+f2", 170, 65),
    User("en-us+f4", 150, 60),
    User("gmw/en", 165, 50),
    User("gmw/en+m2", 150, 40),
    User("gmw/en+m4", 180, 45),
    User("gmw/en+f2", 165, 55),
    User("gmw/en+f3", 155, 70),
    User("en-gb-scotland", 160, 45),
    User("en-gb-scotland+f2", 165, 60),
    User("en-gb-x-rp", 155, 45),
    User("en-gb-x-rp+f1", 170, 55),
    User("en-gb-x-rp+m5", 160, 35),
    User("en-029", 165, 50),
    User("en-us-nyc+m7", 160, 40),
    User("en-us-nyc+f3", 165, 60),
    User("en-gb-x-gbclan+m3", 160, 50),
    User("en-us+m2", 155, 50),
    User("en-us+m5", 170, 40),
    User("en-us+m6", 160, 55),
    User("en-us+f3", 155, 60),
    User("gmw/en+m1", 170, 40),
    User("gmw/en+m3", 155, 50),
    User("gmw/en+m7", 165, 45),
    User("gmw/en+f1", 160, 60),
    User("gmw/en+f4", 170, 50),
    User("en-gb-scotland+m1", 165, 40),
    User("en-gb-scotland+m4", 155, 50),
    User("en-gb-scotland+f4", 160, 55),
    User("en-gb-x-rp+m3", 165, 45),
    User("en-gb-x-rp+f3", 155, 60),
    User("en-029+m2", 160, 45),
    User("en-029+f2", 165, 60),
    User("en-us-nyc", 170, 50),
    User("en-us-nyc+m4", 155, 45),
    User("en-gb-x-gbclan", 165, 45),
    User("en-gb-x-gbclan+f4", 160, 55),
    User("en-us+klatt", 165, 45),
    User("en-us+klatt3", 155, 50),
    User("gmw/en+klatt4", 160, 40),
    User("gmw/en+klatt5", 165, 50),
    User("en-gb-x-rp+klatt6", 160, 45),
    User("en-gb-scotland+klatt", 160, 50),
    User("en-us-nyc+klatt3", 165, 45),
    User("en-us+Andy", 165, 45),
    User("en-us+Alicia", 160, 60),
    User("gmw/en+Denis", 160, 45),
    User("en-us+Michael", 170, 40),
    User("gmw/en+Annie", 160, 60),
    User("en-gb-x-rp+Lee", 165, 50),
    User("en-us+Gene", 155, 45),
    User("gmw/en+linda", 165, 55),
    User("en-us+john", 165, 45),
    User("en-gb-scotland+rob", 160, 45),
    User("en-us+steph", 160, 60),
    User("gmw/en+max", 165, 45),
    User("en-us-nyc+Hugo", 160, 50),
    User("en-us+Mario", 165, 45),
    User("gmw/en+victor", 160, 40),
    User("en-029+paul", 165, 45),
    User("en-gb-x-gbclan+edward", 160, 45),
)
STRANGERS = (
    User("en-us+m8", 165, 45),
    User("gmw/en+f5", 160, 60),
    User("en-gb-x-gbcwmd+m1", 165, 50),
    User("en-us+klatt2", 160, 45),
    User("en-gb-scotland+m6", 155, 40),
    User("en-us-nyc+f1", 175, 55),
)
"""Speakers never heard in training."""
