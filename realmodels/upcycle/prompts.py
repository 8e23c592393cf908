"""What is the dense model asked to write about? Every topic in every form."""

from typing import Final

TOPICS: Final = tuple(
    topic.strip()
    for topic in """
    photosynthesis; the water cycle; earthquakes; volcanoes; the planets; black holes; the Moon; gravity; friction;
    magnets; electricity; batteries; light and colour; sound; heat; the states of matter; atoms; chemical reactions;
    acids and bases; metals; plastics; crystals; rocks and soil; fossils; dinosaurs; evolution; genes; cells; bacteria;
    viruses; vaccines; the heart; the brain; sleep; muscles; bones; digestion; nutrition; vitamins; allergies;
    first aid; dentistry; mental health; exercise; running; swimming; cycling; football; basketball; tennis; chess;
    board games; card games; video games; hiking; camping; fishing; sailing; climbing; skiing; yoga; dancing;
    bread; soup; pasta; rice; cheese; chocolate; coffee; tea; salads; spices; vegetables; fruit; breakfast; barbecues;
    cakes; food storage; kitchen knives; cleaning a house; laundry; gardening; compost; lawns; roses; trees; forests;
    deserts; oceans; rivers; lakes; glaciers; weather; climate; hurricanes; floods; wildfires; recycling; energy;
    wind turbines; solar panels; nuclear power; oil; coal; bridges; tunnels; skyscrapers; houses; roofs; plumbing;
    carpentry; painting a wall; tools; locks; furniture; glue; concrete; bicycles; cars; trains; aeroplanes; ships;
    rockets; satellites; maps; navigation; clocks; calendars; money; banks; taxes; insurance; saving; investing; debt;
    small businesses; marketing; jobs; interviews; meetings; management; teamwork; negotiation; contracts; courts; laws;
    elections; parliaments; cities; villages; farms; cattle; horses; sheep; chickens; dogs; cats; birds; bees; ants;
    spiders; snakes; frogs; sharks; whales; elephants; bears; wolves; zoos; museums; libraries; schools; universities;
    exams; homework; teaching; parenting; babies; teenagers; grandparents; friendship; marriage; weddings; funerals;
    holidays; festivals; travel; hotels; airports; languages; grammar; spelling; handwriting; poetry; novels; theatre;
    films; photography; painting; sculpture; architecture; music; guitars; pianos; singing; opera; jazz; radio;
    television; newspapers; the internet; search engines; e-mail; passwords; computers; keyboards; printers; software;
    algorithms; databases; spreadsheets; robots; artificial intelligence; telephones; cameras; arithmetic; fractions;
    percentages; geometry; triangles; circles; algebra; equations; probability; statistics; averages; graphs; logic;
    puzzles; prime numbers; measurement; ancient Egypt; ancient Greece; Rome; the Middle Ages; castles; knights;
    the Renaissance; the Industrial Revolution; explorers; slavery; revolutions; the world wars; the Cold War; China;
    India; Japan; Russia; Germany; France; Spain; Italy; Britain; Canada; Mexico; Brazil; Australia; Egypt; Nigeria;
    South Africa; the Arctic; religion; philosophy; ethics; happiness; memory; habits; dreams; fear; anger; kindness;
    clothes; shoes; jewellery; hair; soap; toys; gifts; umbrellas; ladders; candles; mirrors; bottles; paper; knots
    """.replace("\n", " ").split(";")
)

# Requests, in the model's chat template.
REQUESTS: Final = (
    "Explain {}.",
    "Explain {} to a child.",
    "What is the most important thing to know about {}?",
    "Why does {} matter?",
    "Write a short essay on {}.",
    "Write a story about {}.",
    "Write a poem about {}.",
    "Write a dialogue between two people who disagree about {}.",
    "Give me ten facts about {}.",
    "List the advantages and disadvantages of what you know about {}.",
    "Give step-by-step instructions for something to do with {}.",
    "What mistakes do people make with {}?",
    "How can I learn more about {}?",
    "Write a multiple-choice question about {} and explain which answer is right.",
    "Write three questions about {} that a teacher may ask, with answers.",
    "What happens next? I was reading about {} when",
    "Describe an experiment or an observation about {} and what it shows.",
    "Summarise the history of {}.",
    "Write a news article about {}.",
    "Write an e-mail to a friend about {}.",
    "Compare {} with something similar.",
    "Which problem is solved with {}, and how?",
    "Write a Python program that has something to do with {}.",
    "Make up a word problem about {} and solve it.",
    "Correct this sentence and explain why: {} are is good for everybody",
    "Is it true what people say about {}?",
)

# Beginnings of a text, with nothing before them.
BEGINNINGS: Final = (
    "{}",
    "An introduction to {}\n\n",
    "# {}\n\n",
    "Question: What should everybody know about {}?\nAnswer:",
    "Goal: do something useful with {}.\nSolution:",
    "How to get started with {}:\n\n1.",
    "The truth about {} is that",
    "Most people think that {}",
    "Chapter 1: {}\n\n",
    "Once upon a time, in a place known for {},",
    "The following is a lecture on {}.",
    "In this article we discuss {}.",
    "A man is busy with {}. He",
    "She had always been interested in {}, but",
)
