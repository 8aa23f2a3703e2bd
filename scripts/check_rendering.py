"""Exits with 0 if MuJoCo can draw and OpenCV can be imported here: both need libraries of the system."""

import os
import sys

SCENE = "<mujoco><worldbody><light pos='0 0 2'/><geom size='1'/></worldbody></mujoco>"


def main() -> int:
    try:
        import cv2  # noqa: F401
        import mujoco

        renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string(SCENE), 32, 32)
        data = mujoco.MjData(renderer.model)
        mujoco.mj_forward(renderer.model, data)
        renderer.update_scene(data)
        return 0 if renderer.render().any() else 1
    except Exception as error:  # whatever GL raises, it cannot draw
        print(f"cannot render: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Drivers may complain while the interpreter is torn down; the answer is known already.
    os._exit(status)
