"""Programs that run in the clients' environments; each prints one number or more on its last line."""

ASK_OPENPI = """
import json, sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
with np.load(sys.argv[2]) as saved:
    request = {key.replace("|", "/"): saved[key] for key in saved.files if key != "actions"}
    request["prompt"] = str(request["prompt"])
    print(np.abs(policy.infer(request)["actions"] - saved["actions"]).max())
"""

# The real server in front of the real client: what it serves is asked of vega3d-serve.
SERVE_OPENPI = """
import sys
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_server import WebsocketPolicyServer
inner = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
WebsocketPolicyServer(inner, host="127.0.0.1", port=int(sys.argv[2])).serve_forever()
"""

ASK_VLA_EVAL = """
import sys
import anyio
import numpy as np
from vla_eval.connection import Connection

async def main():
    with np.load(sys.argv[2]) as saved:
        images = {"agentview": saved["observation|image"], "wrist": saved["observation|wrist_image"]}
        observation = {"images": images, "states": saved["observation|state"], "task_description": str(saved["prompt"])}
        expected = saved["actions"]
    apart = 0.0
    async with Connection(f"ws://127.0.0.1:{sys.argv[1]}") as connection:
        await connection.start_episode({"task": {"name": "milk"}})
        for step in range(3):
            answer = await connection.act(observation)
            apart = float(np.maximum(apart, np.abs(answer["actions"] - expected[step]).max()))  # NaN stays
    print(apart)

anyio.run(main)
"""

COUNT_MCAP_ROS2 = """
import sys
from mcap_ros2.reader import read_ros2_messages
print(sum(1 for message in read_ros2_messages(sys.argv[1]) if message.ros_msg is not None))
"""

COUNT_ROSBAGS = """
import sys
from pathlib import Path
from rosbags.highlevel import AnyReader
with AnyReader([Path(sys.argv[1])]) as reader:
    print(sum(1 for c, _, data in reader.messages() if reader.deserialize(data, c.msgtype) is not None))
"""

READ_LEROBOT = """
import sys
try:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
except ImportError:
    from lerobot.datasets import LeRobotDataset
dataset = LeRobotDataset("local/vega3d", root=sys.argv[1], video_backend="pyav")
item = dataset[len(dataset) - 1]
assert item["observation.images.agentview"].shape[0] == 3 and item["task"], item.keys()
print(len(dataset))
"""

# Somebody's camera driver under another ROS distribution; counts the frames of all cameras.
SEND_IMAGES = """
import array, os, sys, time
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
count, rate, cameras = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
rclpy.init()
node = rclpy.create_node("camera_driver")
publishers = [node.create_publisher(Image, f"{camera}/image_raw", qos_profile_sensor_data) for camera in cameras]
done = node.create_publisher(Bool, "done", 1)
message = Image(height=480, width=640, encoding="rgb8", step=1920, data=array.array("B", os.urandom(921600)))
deadline = time.monotonic() + 120
while not all(publisher.get_subscription_count() for publisher in publishers):
    assert time.monotonic() < deadline, "nobody subscribes"
    rclpy.spin_once(node, timeout_sec=0.1)
time.sleep(1)  # both sides know each other
due = time.monotonic()
for _ in range(count):
    now = time.time_ns()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
    for publisher in publishers:
        publisher.publish(message)
    due += 1 / rate
    time.sleep(max(0.0, due - time.monotonic()))
deadline = time.monotonic() + 5
done.publish(Bool(data=True))
while done.get_subscription_count() and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.1)
print(count * len(publishers))
node.destroy_node()
rclpy.shutdown()
"""
