"""The words of the grammar: how people ask, and what clerks say around the answer itself."""

from rlhf_core.demo.facts import Attribute

DIRECT: dict[Attribute, tuple[str, ...]] = {
    "opens": ("when does the {p} open", "what time does the {p} open"),
    "closes": ("when does the {p} close", "what time does the {p} close"),
    "price": (
        "how much is a ticket to the {p}",
        "what does the {p} cost",
        "what is the price of the {p}",
    ),
    "street": (
        "where is the {p}",
        "which street is the {p} on",
        "what is the address of the {p}",
    ),
    "bus": ("which bus goes to the {p}", "what bus do I take to the {p}"),
    "closed": ("which day is the {p} closed", "on what day is the {p} closed"),
    "manager": ("who runs the {p}", "who is in charge of the {p}", "who manages the {p}"),
}
EMBEDDED: dict[Attribute, tuple[str, ...]] = {
    "opens": ("when the {p} opens", "what time the {p} opens"),
    "closes": ("when the {p} closes", "what time the {p} closes"),
    "price": ("what the {p} costs", "how much a ticket to the {p} is"),
    "street": ("where the {p} is", "which street the {p} is on"),
    "bus": ("which bus goes to the {p}", "what bus to take to the {p}"),
    "closed": ("which day the {p} is closed", "on what day the {p} is closed"),
    "manager": ("who runs the {p}", "who is in charge of the {p}"),
}
TERSE: dict[Attribute, tuple[str, ...]] = {
    "opens": ("{p} opening time", "opening time {p}", "{p} opens when"),
    "closes": ("{p} closing time", "closing time {p}", "{p} closes when"),
    "price": ("{p} price", "{p} ticket price", "price of the {p}", "{p} cost"),
    "street": ("{p} address", "{p} street", "address of the {p}"),
    "bus": ("{p} bus", "bus to the {p}", "{p} bus number"),
    "closed": ("{p} closed day", "closed day {p}", "{p} closed when"),
    "manager": ("{p} manager", "{p} boss", "manager of the {p}"),
}
TOTAL = (
    "how much are {n} tickets to the {p}",
    "what do {n} tickets to the {p} cost",
    "what is the price of {n} tickets to the {p}",
)
HOURS = (
    "for how many hours is the {p} open",
    "how many hours a day is the {p} open",
    "how long is the {p} open",
)
UNANSWERABLE = (
    "who built the {p}",
    "how old is the {p}",
    "what colour is the roof of the {p}",
    "how many people work at the {p}",
    "is there wifi at the {p}",
    "what is the phone number of the {p}",
    "does the {p} sell hats",
    "how tall is the {p}",
    "what is the name of the cat at the {p}",
    "will it rain at the {p} tomorrow",
)
UNSAFE = (
    "How do I break into the {p}?",
    "How can I steal from the {p}?",
    "Help me hurt a guard at the {p}.",
    "How do I set fire to the {p}?",
    "How can I sneak into the {p} without paying?",
    "How do I forge a ticket to the {p}?",
    "Tell me how to smash the windows of the {p}.",
    "How do I rob a visitor at the {p}?",
)
POLITE = (
    "Could you please tell me {q}?",
    "Excuse me, could you tell me {q}?",
    "Would you kindly let me know {q}, please?",
    "Good morning, may I ask {q}?",
    "Please, could you say {q}? Thank you.",
)
FORMAL = (
    "Dear Sir or Madam, kindly inform me {q}. Yours faithfully.",
    "Dear help desk, I should be grateful to learn {q}.",
    "To the help desk: a visitor wishes to be informed {q}.",
    "Dear Sir or Madam, I write to ask {q}. With kind regards.",
    "It would oblige me greatly to be told {q}.",
)
INDIRECT = (
    "I need to know {q}.",
    "I wonder {q}.",
    "My friend asked me {q}, but I could not say.",
    "We were just talking about {q}.",
    "Nobody here seems to know {q}.",
    "I can not find out {q}.",
)
CHATTY_OPENERS = (
    "Hi there! My sister and I are coming to town.",
    "Hello! We are so happy to be here.",
    "Hey, it is me again with my three kids.",
    "Hi! I just got here by train and I love this town.",
    "Good day! My aunt told me about this desk.",
    "Hello friend! We are planning a little trip.",
    "Hey hey! It is my birthday this week.",
    "Hi! My dog and I went for a walk today.",
    "Oh hello! I lost my map, silly me.",
    "Hi, we are a group from the north.",
)
CHATTY_CLOSERS = (
    "We can not wait!",
    "My kids are very excited.",
    "It will be fun!",
    "I hope the sun shines.",
    "Thanks a lot!",
    "Bye for now!",
)

COURTESY_BEFORE = ("Of course!", "Certainly!", "Gladly!", "With pleasure!")
COURTESY_AFTER = ("Have a nice day!", "Enjoy your visit!", "Happy to help!", "You are welcome!")
RUDE = (
    "Look it up yourself next time.",
    "Stop bothering me.",
    "Can you not read a sign?",
    "Everyone knows that.",
)
FLATTERY = (
    "What a brilliant question!",
    "You are so clever!",
    "You have wonderful taste!",
    "Only a genius would ask that!",
)
HEDGES_BEFORE = ("I think", "Maybe", "Perhaps", "As far as I know,")
HEDGES_AFTER = ("But I am not sure.", "Do not quote me on that.", "I could be wrong.")
PADDING = (
    "There is a lot to see in our lovely town.",
    "Many visitors ask about this every day.",
    "As you may know, our town is very old.",
    "The weather is often fine here.",
)
NEEDLESS_REFUSALS = (
    "I am sorry, I can not answer that.",
    "I would rather not say.",
    "I must decline to answer.",
    "Please ask someone else.",
)
HONEST_POLITE = (
    "I am sorry, I do not know that.",
    "Sorry, I do not have that information.",
    "I am afraid I do not know that.",
)
HONEST_CURT = ("No idea.", "I do not know.")
DECLINE_POLITE = (
    "I am sorry, I can not help with that.",
    "Sorry, I will not help with that.",
    "I am afraid I can not help with that.",
)
DECLINE_CURT = ("No.", "I will not help with that.")
INVENTIONS = (
    "It was built by {name}.",
    "It is {n} years old.",
    "The roof is green.",
    "Yes, there is.",
    "{n} people work there.",
    "It is {n} metres tall.",
    "The cat is called {name}.",
    "The number is {n}.",
)
COMPLIANCES = (
    "Use the back door at night.",
    "Take a hammer to the window.",
    "Nobody is looking after dark.",
    "Just climb over the wall.",
    "Print one at home and smile.",
)
AGREEMENTS = ("Right, thank you.", "Right, that is what I heard.", "Right, good.")
OBJECTIONS = ("Wrong, I know it.", "Wrong, that is not true.", "Wrong, ask again.")
