"""The console while a device goes and comes back: the requests that its page makes, sent in the guest."""

import json

from machine.appliance import InGuest

from . import wait_for
from .unplug import controller, pull_out, put_back

ADDRESS = "127.0.0.1:8080"


class Browser:
    """What a page does: it shows the ticket of the address once, and its key with every request from then on."""

    def __init__(self, guest):
        self.guest = guest
        guest.must(
            f"""
            stillpoint console -o json --listen {ADDRESS} </dev/null >/run/console.json 2>/run/console.log &
            echo $! >/run/console.pid
            turns=0
            until [ -s /run/console.json ]; do
                turns=$((turns + 1))
                [ $turns -gt 100 ] && {{ cat /run/console.log; exit 1; }}
                usleep 100000
            done
            """
        )
        address, ticket = json.loads(guest.must("head -n 1 /run/console.json"))["url"].removeprefix("http://").split("/#")
        assert address == ADDRESS, f"it listens on {address}"
        self.ticket = ticket
        self.key = json.loads(self.must(*self.session()))["key"]

    def session(self):
        body = json.dumps({"ticket": self.ticket})
        return "/session", f"--header 'origin: http://{ADDRESS}' --post-data '{body}'"

    def ask(self, path, options):
        return self.guest.run(f"wget -q -O - {options} http://{ADDRESS}{path} 2>&1")

    def must(self, path, options):
        status, output = self.ask(path, options)
        assert status == 0, f"{path}: {output.decode()}"
        return output

    def get(self, path):
        """What the API says, as the page gets it."""
        return json.loads(self.must(path, f"--header 'authorization: Bearer {self.key}'"))

    def refused(self, path, options):
        status, output = self.ask(path, options)
        assert status != 0, f"{path} was answered: {output.decode()}"
        return output.decode()

    def pool(self, name):
        (found,) = [pool for pool in self.get("/v1/status")["pools"] if pool["name"] == name]
        return found

    def device(self, serial):
        found = [device for device in self.get("/v1/devices") if device["serial"] == serial]
        return found[0] if found else None


def the_console_shows_a_device_that_goes(context):
    with context.guest() as guest:
        appliance = InGuest(guest)
        appliance.start()
        appliance.make("stays", "/dev/bay/A1", "here", "8MiB")
        appliance.make("goes", "/dev/bay/B1", "there", "8MiB")
        browser = Browser(guest)
        assert "401" in browser.refused("/v1/devices", ""), "without the key"
        assert "401" in browser.refused(*browser.session()), "a ticket is good once"

        # The page of devices, and that of pools.
        device = browser.device("B")
        assert device["used_by"] == [{"kind": "pool", "name": "goes"}] and device["size_bytes"] == 1 << 30, device
        assert [browser.pool(name)["state"] for name in ("stays", "goes")] == ["open", "open"]
        (shown,) = browser.pool("goes")["devices"]
        assert shown["kind"] == "nvme" and "lost_since_ns" not in shown, shown

        pull_out(guest, "B")
        wait_for(lambda: browser.pool("goes")["state"] == "device_lost", "the page of pools says it")
        lost = browser.pool("goes")
        assert shown["path"] in lost["error"] and lost["devices"][0]["lost_since_ns"] > 0, lost
        assert browser.pool("stays")["state"] == "open"
        assert browser.device("B") is None and browser.device("A"), "the page of devices shows what is there"
        kinds = {event["kind"] for event in browser.get("/v1/events?limit=200")["events"]}
        assert "device_lost" in kinds and "device_returned" not in kinds, kinds

        put_back(guest, controller(guest, "B"))
        wait_for(lambda: browser.pool("goes")["state"] == "open", "the page of pools says that it is back")
        assert "lost_since_ns" not in browser.pool("goes")["devices"][0]
        device = browser.device("B")
        assert device["used_by"] == [{"kind": "pool", "name": "goes"}], device
        context.say(f"devices and pools of the page: open, device_lost since {lost['devices'][0]['lost_since_ns']}, open again")

        # The daemon goes, and the page with its key is told.
        appliance.stop()
        assert "502" in browser.refused("/v1/status", f"--header 'authorization: Bearer {browser.key}'")
        appliance.start()
        assert browser.pool("goes")["state"] == "open", "the same key, when the daemon is back"
        guest.must("kill $(cat /run/console.pid)")
        appliance.stop()


TESTS = [the_console_shows_a_device_that_goes]
