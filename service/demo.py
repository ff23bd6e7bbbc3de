"""`gatekeeper demo`: sentences through a running edge, who answered each, and what the threshold does."""

from typing import Any

import httpx

from models.errors import InputError

EASY = (
    "what's my checking account balance",
    "set a timer for twelve minutes",
    "how do i say good morning in japanese",
    "please turn the volume down a little",
    "book me a flight from oslo to lisbon on friday",
    "my card was declined at the grocery store",
    "remind me to call the plumber at noon",
    "what is the weather going to be like tomorrow",
    "tell me a joke about elephants",
    "how many calories are in a banana",
    "i need a new insurance card",
    "flip a coin for me",
    "what's the exchange rate between pounds and euros",
    "add oat milk to my shopping list",
    "how much vacation do i have left",
)
HARDER = (
    "the plastic thing i pay with has gone walkabout",
    "could you make the lights a bit less awful in here",
    "am i going to need a brolly on saturday",
    "i'd rather you spoke like someone from glasgow",
    "my tyres look a bit flat, how hard should they be",
    "put me down as away from the third to the ninth",
    "what do they want me to bring through customs for spain",
    "which of my bills is about to bite me",
    "who made you, and are they proud of it",
    "swap the oil for something else in this cake",
    "is there anything left on the plastic before they cut me off",
    "get me someone who speaks human",
)
ODD = (
    "the moon tastes of cheese and regret",
    "why do cats knock glasses off tables",
    "wer hat den kuchen gegessen",
    "asdf qwer zxcv",
    "compose a haiku on database migrations",
    "do fish get thirsty 🐟",
    "my left shoe has opinions about politics",
    "explain the offside rule to a goldfish",
    "∑ over all my regrets",
)
THRESHOLDS = (0.5, 0.9, 0.99)


def show(url: str) -> int:
    """Print the table; the policy of the edge stays as it is. Raises InputError when nothing answers there."""
    sentences = [*EASY, *HARDER, *ODD]
    with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
        _check_task(client)
        answer = _classify(client, sentences, None)
        print(f"{answer['model']} at {url}, threshold {answer['threshold']:g}\n")
        print(f"{'sentence':60}  {'answer':28}  {'confidence':10}  answered by")
        for sentence, output in zip(sentences, answer["outputs"], strict=True):
            print(
                f"{sentence:60}  {output['label']:28}  {output['confidence']:<10.3f}  "
                f"{output['answered_by']}{_remark(output)}"
            )
        print("\nthreshold  deferral ratio")
        for threshold in THRESHOLDS:
            outputs = _classify(client, sentences, threshold)["outputs"]
            deferred = sum(output["decision"] != "accepted" for output in outputs)
            print(f"{threshold:<9g}  {deferred / len(outputs):.2f}  {'#' * deferred}")
    return 0


def _remark(output: dict[str, Any]) -> str:
    if output["decision"] == "degraded":
        return f" (the gate deferred; {output['reason']})"
    if output["decision"] == "deferred" and output["small"]["label"] != output["label"]:
        return f" (small: {output['small']['label']})"
    return ""


def _check_task(client: httpx.Client) -> None:
    """Raises InputError where the edge takes something else than sentences; whether it is there shows later."""
    try:
        served = client.get("/v1/models").json()["data"][0]
    except (httpx.TransportError, ValueError, LookupError, TypeError):
        return
    if served.get("task") == "image-classification":
        raise InputError(
            f"{served['id']} at {client.base_url} takes images, and the demo has sentences alone; "
            f"send it images of your own: curl -s {client.base_url}/v1/classify -F images=@FILE"
        )


def _classify(client: httpx.Client, sentences: list[str], threshold: float | None) -> dict[str, Any]:
    parameters = {} if threshold is None else {"threshold": threshold}
    try:
        response = client.post("/v1/classify", json={"inputs": sentences, "parameters": parameters})
    except httpx.TransportError as error:
        raise InputError(f"nothing answers at {client.base_url}: start it with `make serve` ({error})") from error
    if response.status_code != 200:
        raise InputError(f"{client.base_url} answered {response.status_code}: {response.text[:300]}")
    answer: dict[str, Any] = response.json()
    return answer
