// Passkeys, and nothing else. A form with data-create makes one and is then
// sent; a form with data-get signs in with one and goes where it is told.
const words = {
  NotAllowedError: "Nothing was confirmed. Try again when you are ready.",
  InvalidStateError: "This device has a passkey of yours already.",
  SecurityError: "Passkeys do not work at this address. Use the address that your administrator gave you.",
};

for (const form of document.querySelectorAll("form[data-create], form[data-get]")) {
  const alert = form.querySelector("[role=alert]");
  const say = (text) => { alert.textContent = text; };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    say("");
    try {
      if (!window.PublicKeyCredential?.parseRequestOptionsFromJSON) {
        say("This browser is too old for passkeys.");
        return;
      }
      if (form.dataset.create) {
        const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(JSON.parse(form.dataset.create));
        form.elements.answer.value = JSON.stringify(await navigator.credentials.create({ publicKey }));
        form.submit();
        return;
      }
      const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(JSON.parse(form.dataset.get));
      form.elements.answer.value = JSON.stringify(await navigator.credentials.get({ publicKey }));
      const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), credentials: "same-origin" });
      const told = await answer.json();
      if (answer.ok) {
        location.replace(told.to);
        return;
      }
      say(told.error);
    } catch (error) {
      say(words[error.name] ?? "That did not work. Load the page again and try once more.");
    } finally {
      button.disabled = false;
    }
  });
}

// An invitation is behind the # of its link, where no server sees it.
const invitation = document.getElementById("invitation");
if (invitation && location.hash.length > 1) {
  invitation.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}
