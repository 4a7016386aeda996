"""How a task is put to the model, in the language of its data. Written for mtk.

Whatever is long stands last, because inputs are cut at their end. The examples of a split
take the templates in turn; training takes every example with every template.
"""

# ruff: noqa: RUF001  Arabic letters are not meant to be Latin ones

from __future__ import annotations

# Task and language -> prompts with the fields of an example.
TEMPLATES: dict[tuple[str, str], tuple[str, ...]] = {
    ("qa", "en"): (
        "Answer with words of the text. Question: {question}\nText: {context}",
        "{question}\nThe answer is found in this passage: {context}",
        'Which part of the passage answers "{question}"?\n{context}',
    ),
    ("qa", "ar"): (
        "أجب بكلمات من النص. السؤال: {question}\nالنص: {context}",
        "{question}\nالجواب موجود في هذه الفقرة: {context}",
        "أي جزء من الفقرة يجيب عن السؤال «{question}»؟\n{context}",
    ),
    ("qa", "de"): (
        "Antworte mit Worten aus dem Text. Frage: {question}\nText: {context}",
        "{question}\nDie Antwort steht in diesem Abschnitt: {context}",
        "Welcher Teil des Abschnitts beantwortet „{question}“?\n{context}",
    ),
    ("qa", "th"): (
        "ตอบด้วยคำจากข้อความ คำถาม: {question}\nข้อความ: {context}",
        "{question}\nคำตอบอยู่ในย่อหน้านี้: {context}",
        'ส่วนใดของย่อหน้าตอบคำถาม "{question}"\n{context}',
    ),
    ("nli", "ar"): (
        "هل تنتج الجملة الثانية عن الأولى؟\nالأولى: {premise}\nالثانية: {hypothesis}",
        "إذا كان صحيحا أن «{premise}»، فهل صحيح أن «{hypothesis}»؟",
    ),
    ("nli", "th"): (
        "ประโยคที่สองเป็นผลจากประโยคแรกหรือไม่\nประโยคแรก: {premise}\nประโยคที่สอง: {hypothesis}",
        'ถ้า "{premise}" เป็นจริง "{hypothesis}" เป็นจริงหรือไม่',
    ),
    ("nli", "en"): (
        (
            "Does the second sentence follow from the first?\n"
            "First: {premise}\nSecond: {hypothesis}"
        ),
        'Suppose it is true that "{premise}". Is it true that "{hypothesis}"?',
    ),
    ("nli", "de"): (
        (
            "Folgt der zweite Satz aus dem ersten?\n"
            "Erster: {premise}\nZweiter: {hypothesis}"
        ),
        "Angenommen, „{premise}“ stimmt. Stimmt dann auch „{hypothesis}“?",
    ),
    ("summary", "th"): (
        "สรุปข้อความต่อไปนี้\n{document}",
        "เขียนใจความสำคัญของข้อความนี้ให้สั้น:\n{document}",
    ),
    ("summary", "ar"): (
        "لخص النص التالي\n{document}",
        "اكتب باختصار أهم ما في هذا النص:\n{document}",
    ),
    ("summary", "en"): (
        "Summarise the following text.\n{document}",
        "Write down briefly what matters in this text:\n{document}",
    ),
    ("summary", "ko"): (
        "다음 글을 요약하세요.\n{document}",
        "이 글의 중요한 내용을 짧게 쓰세요:\n{document}",
    ),
    ("summary", "de"): (
        "Fasse den folgenden Text zusammen.\n{document}",
        "Schreibe kurz auf, worum es in diesem Text geht:\n{document}",
    ),
    ("sense", "de"): (
        "Bedeutet „{word}“ in beiden Sätzen dasselbe?\n1. {first}\n2. {second}",
        "{first}\n{second}\nHat „{word}“ hier zweimal denselben Sinn?",
    ),
    ("sense", "en"): (
        'Does "{word}" mean the same in both sentences?\n1. {first}\n2. {second}',
        '{first}\n{second}\nIs "{word}" used twice in one sense here?',
    ),
    ("sense", "ko"): (
        '두 문장에서 "{word}"의 뜻이 같습니까?\n1. {first}\n2. {second}',
        '{first}\n{second}\n여기서 "{word}"은(는) 두 번 같은 의미로 쓰였습니까?',
    ),
    ("answerability", "ko"): (
        (
            "질문에 예 또는 아니요로 답하세요. 그렇게 답할 수 없으면 없음이라고 쓰세요.\n"
            "질문: {question}\n글: {document}"
        ),
        "{question}\n다음 글에 따르면 예, 아니요, 없음 중 무엇입니까?\n{document}",
    ),
    ("answerability", "en"): (
        (
            "Answer the question with yes or no, or with none if neither answers it.\n"
            "Question: {question}\nText: {document}"
        ),
        "{question}\nYes, no or none, judging by this text?\n{document}",
    ),
    ("answerability", "th"): (
        (
            "ตอบคำถามด้วยใช่หรือไม่ใช่ ถ้าตอบเช่นนั้นไม่ได้ให้ตอบว่าไม่มี\n"
            "คำถาม: {question}\nข้อความ: {document}"
        ),
        "{question}\nตามข้อความนี้ ใช่ ไม่ใช่ หรือไม่มี\n{document}",
    ),
    ("answerability", "ar"): (
        (
            "أجب عن السؤال بنعم أو لا، وإن لم يكن ذلك ممكنا فاكتب: لا شيء.\n"
            "السؤال: {question}\nالنص: {document}"
        ),
        "{question}\nنعم أم لا أم لا شيء، حسب هذا النص؟\n{document}",
    ),
    ("continuation", "es"): ("{beginning}",),
}

# Task and language -> answers to choose from, in the order of the labels.
ANSWERS: dict[tuple[str, str], tuple[str, ...]] = {
    # entailment, neutral, contradiction
    ("nli", "ar"): ("نعم", "ربما", "لا"),
    ("nli", "th"): ("ใช่", "อาจจะ", "ไม่ใช่"),
    ("nli", "en"): ("yes", "maybe", "no"),
    ("nli", "de"): ("ja", "vielleicht", "nein"),
    # another sense, the same sense
    ("sense", "de"): ("nein", "ja"),
    ("sense", "en"): ("no", "yes"),
    ("sense", "ko"): ("아니요", "예"),
    # yes, no, none
    ("answerability", "ko"): ("예", "아니요", "없음"),
    ("answerability", "en"): ("yes", "no", "none"),
    ("answerability", "th"): ("ใช่", "ไม่ใช่", "ไม่มี"),
    ("answerability", "ar"): ("نعم", "لا", "لا شيء"),
}
